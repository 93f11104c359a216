"""A Sphinx extension that warns of each public name that the API reference leaves out: `make docs` then fails."""

import json
from importlib import import_module
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PUBLIC = Path(__file__).parents[1] / "tests" / "public_api.json"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}


def check(app: Sphinx, environment: BuildEnvironment) -> None:
    domain = environment.domains["py"]
    documented = {*domain.data["objects"], *domain.data["modules"]}
    for package, names in json.loads(PUBLIC.read_text()).items():
        for name in names:
            thing = getattr(import_module(package), name)
            home = (
                f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', None)}"  # where it has two names
            )
            if not {f"{package}.{name}", home} & documented:
                logging.getLogger(__name__).warning(f"{package}.{name} is public and not in the API reference")
