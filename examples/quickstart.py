"""An agent that remembers, through the unchanged SDK (`pip install letta-client`), on the server of `make run`."""

from letta_client import Letta

client = Letta(base_url="http://127.0.0.1:8283")
agent = client.agents.create(
    model="demo/demo",  # a script that needs no key; client.models.list() has the real ones
    memory_blocks=[{"label": "human", "value": ""}, {"label": "persona", "value": "I am a good listener."}],
)
for text in ("Remember that I like tea.", "What do you know?"):
    reply = client.agents.messages.create(agent.id, input=text)
    print(f"> {text}\n{reply.messages[-1].content}\n")

print("Its memory:", client.agents.blocks.retrieve("human", agent_id=agent.id).value)
