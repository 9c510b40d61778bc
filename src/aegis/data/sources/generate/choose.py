"""Find the backend that `--backend` names."""

from __future__ import annotations

from dataclasses import dataclass

from aegis.data.sources.generate.backend import Backend
from aegis.data.sources.generate.http import HttpBackend
from aegis.data.sources.generate.programs import PROGRAMS, ProgramBackend, template_program
from aegis.errors import BadInputError

NAMES = ("local", *PROGRAMS, "cli:TEMPLATE", "openai")


@dataclass(frozen=True)
class BackendChoice:
    """What the user says about a backend; some of it is of no matter to some.

    Args:
        url, key_env: of an OpenAI-compatible server.
        pass_env: environment variables that a program may see beside the usual ones.
        timeout_s: that a call may take.
    """

    backend: str
    model: str | None = None
    url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    pass_env: tuple[str, ...] = ()
    timeout_s: float = 300.0


def open_backend(choice: BackendChoice) -> Backend:
    """Return a backend that is a program or a server; nothing is called yet.

    Raises:
        BadInputError: if there is none of this name, or it needs what was not given.
    """
    name, model = choice.backend, choice.model
    if name == "openai":
        return HttpBackend(
            url=choice.url, model=model, key_env=choice.key_env, timeout_s=choice.timeout_s
        )
    if name.startswith("cli:"):
        program = template_program(name.removeprefix("cli:"))
        if not model and any("{model}" in word for word in program.arguments):
            raise BadInputError("--model is needed where the command of --backend has {model}")
    elif name in PROGRAMS:
        program = PROGRAMS[name]
    else:
        raise BadInputError(f"--backend must be one of {', '.join(NAMES)}, got {name[:80]!r}")
    return ProgramBackend(
        program, model=model, pass_env=choice.pass_env, timeout_s=choice.timeout_s
    )
