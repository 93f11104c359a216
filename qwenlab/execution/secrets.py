"""Secret parameters: values that reach the notebook but are never written to a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from papermill.translators import PythonTranslator

HIDDEN = "•••"
"""The text that replaces a secret."""

_VARIABLE = "QWENLAB_SECRET_"
_CREDENTIAL = re.compile(
    r"(.*_)?(secret|pass(word|wd|phrase)|credentials?|(api|access|private|secret)_?key|(hf|hub|api|auth|access)_token)"
)


@dataclass(frozen=True, repr=False)
class Secret:
    """A parameter's value that is never written. Its str and repr are HIDDEN, and its variable."""

    value: Any  # what the notebook gets
    variable: str | None = None  # the environment variable that it was read from
    text: str | None = None  # the text of that variable

    def __str__(self) -> str:
        return HIDDEN if self.variable is None else f"{HIDDEN} (${self.variable})"

    __repr__ = __str__


def is_reference(value: Any) -> bool:
    """Whether a parameter's value is `{env: NAME}`, a reference to an environment variable."""
    return isinstance(value, dict) and set(value) == {"env"}


def hide(value: Any) -> Any:
    """Make a value a Secret. A reference is returned unchanged: it shows nothing, and is read later."""
    return value if is_reference(value) else Secret(value)


def looks_secret(name: str, value: Any) -> bool:
    """Whether a plain value is probably a credential, by its name: only for a warning."""
    return isinstance(value, str) and bool(value) and _CREDENTIAL.fullmatch(name.lower()) is not None


def shown(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as files may show them: each Secret is replaced by its text."""
    return {name: str(value) if isinstance(value, Secret) else value for name, value in parameters.items()}


def secrets_of(parameters: Mapping[str, Any]) -> dict[str, Secret]:
    """The secrets among the parameters."""
    return {name: value for name, value in parameters.items() if isinstance(value, Secret)}


def environment_of(secrets: Mapping[str, Secret]) -> dict[str, str]:
    """The environment variables through which a kernel gets its secrets, as JSON."""
    return {_VARIABLE + name: json.dumps(secret.value) for name, secret in secrets.items()}


def inject(notebook: Any, secrets: Mapping[str, Secret]) -> None:
    """Change the cell that papermill injected: it reads the secrets from the kernel's environment.

    Papermill got `shown(parameters)`, so the injected cell assigns the text of each secret; these lines are replaced.
    """
    cell = next(cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
    texts = {PythonTranslator.assign(name, PythonTranslator.translate(str(secrets[name]))) for name in secrets}
    lines = [line for line in cell.source.rstrip("\n").split("\n") if line not in texts]
    for name in secrets:
        variable = json.dumps(_VARIABLE + name, ensure_ascii=False)
        lines.append(f'{name} = __import__("json").loads(__import__("os").environ[{variable}])  # {HIDDEN}')
    cell.source = "\n".join(lines) + "\n"
