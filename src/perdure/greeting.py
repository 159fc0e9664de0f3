"""What the server says to a person when it starts: where it is, what it has, what to do next. Pure text."""

from collections.abc import Sequence

import perdure
from perdure.settings import Settings, password_in

SHOWN = 6
DEMO = "demo/demo"
NO_MODEL = (
    "None yet: set OPENAI_API_KEY, or start Ollama, LM Studio, llama.cpp or vLLM here, then restart.\n"
    "  `perdure doctor` tells why a configured one is missing."
)


def where(url: str, settings: Settings) -> str:
    """Address, data and documentation."""
    return (
        f"\nPerdure {perdure.__version__} is at {url}\n\n"
        f"  data      {settings.home}\n"
        f"  database  {without_password(settings.database)}\n"
        f"  API       {url}/openapi.json"
    )


def what_next(url: str, settings: Settings, models: Sequence[str]) -> str:
    """The models, and a first conversation to copy."""
    if not models:
        return f"  models    {NO_MODEL}\n"
    named = ", ".join(models[:SHOWN]) + (f" and {len(models) - SHOWN} more" if len(models) > SHOWN else "")
    steps = first_steps(url, settings.password is not None, preferred(models))
    return f"  models    {named}\n\n{steps}\nStop with Ctrl-C.\n"


def preferred(models: Sequence[str]) -> str:
    """A real model if there is one: the demo is a script."""
    return next((model for model in models if model != DEMO), models[0])


def first_steps(url: str, locked: bool, model: str) -> str:
    """Two ways to talk to an agent."""
    key = ", api_key=PASSWORD" if locked else ""
    header = " -H 'Authorization: Bearer PASSWORD'" if locked else ""
    return f"""\
Create an agent from another terminal:

  curl {url}/v1/agents/{header} --json '{{"model": "{model}", "memory_blocks": [{{"label": "human", "value": ""}}]}}'

Or with the SDK (pip install letta-client):

  from letta_client import Letta
  client = Letta(base_url="{url}"{key})
  agent = client.agents.create(model="{model}", memory_blocks=[{{"label": "human", "value": ""}}])
  reply = client.agents.messages.create(agent.id, input="Remember that I like tea.")
  print(reply.messages[-1].content)
"""


def without_password(url: str) -> str:
    """A database URL that may be shown."""
    secret = password_in(url)
    return url.replace(f":{secret}@", ":***@") if secret else url
