"""What setup.cfg cannot say: conf/ stays at the top of the repository, and travels in the wheel as mmadapter.conf."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["mmadapter*", "data_prep*"]), "mmadapter.conf"],
    package_dir={"mmadapter.conf": "conf"},
    package_data={"mmadapter": ["tiny/**", "**/*.jinja", "**/*.json", "py.typed"], "mmadapter.conf": ["**/*.yaml"]},
)
