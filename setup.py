"Everything about the package stands in settings.ini; this file hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser()
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
name, url, branch = cfg["lib_name"], cfg["git_url"], cfg["branch"]
extras = {k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")}
# README's links are relative to the repository; on a package index they need the whole address.
readme = Path("README.md").read_text(encoding="utf-8")
readme = readme.replace("](nbs/images/", f"]({url}/raw/{branch}/nbs/images/").replace("](nbs/", f"]({url}/blob/{branch}/nbs/")

setup(
    name=name, version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"],
    license={"apache2": "Apache-2.0"}[cfg["license"]], license_files=["LICENSE"],
    long_description=readme, long_description_content_type="text/markdown",
    url=url, project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Changes": f"{url}/blob/{branch}/CHANGELOG.md"},
    classifiers=["Development Status :: 3 - Alpha", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", "Topic :: Scientific/Engineering :: Artificial Intelligence",
                 *(f"Programming Language :: Python :: {v}" for v in ("3", "3.11", "3.12", "3.13"))],
    packages=[cfg["lib_path"]], package_data={name: ["passages.tsv"]}, include_package_data=False, zip_safe=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{name}={name}._modidx:d"]},
)
