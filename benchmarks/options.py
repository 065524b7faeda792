"What the scripts ask of their arguments, as types for argparse, which makes an error of one line of it."
import os
from argparse import ArgumentTypeError
from pathlib import Path

def count(text):
    "A whole number, 1 or more."
    if text.isdecimal() and int(text): return int(text)
    raise ArgumentTypeError(f"must be a whole number in [1, inf), got {text!r}")

def model(text):
    "The name or folder of a model that is there."
    from advft.core import check_tokenizer
    try: check_tokenizer(text)
    except (ValueError, OSError) as e: raise ArgumentTypeError(" ".join(str(e).split())) from None
    return text

def new_file(text):
    "A path where a file can be written."
    path = Path(text)
    if path.is_dir(): raise ArgumentTypeError(f"must be a file, and {text} is a folder; name a file in it")
    if not path.parent.is_dir(): raise ArgumentTypeError(f"must be in a folder that exists, got {text}; make {path.parent} first")
    if not os.access(path.parent, os.W_OK): raise ArgumentTypeError(f"must be where you may write, got {text}; choose another")
    return path
