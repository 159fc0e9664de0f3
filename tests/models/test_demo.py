"""The demo: a small grammar over memory tools and sums. Whatever is said to it, it answers."""

import asyncio
import json
import time
from typing import Any

import pytest
from hearing import asking, hear, message
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.messages import Text, ToolCall, ToolReturn
from perdure.domain.ports import CallPiece, ModelRequest, ToolSchema
from perdure.domain.records import Agent, Block
from perdure.memory.prompt import compile_system
from perdure.models.demo import LABEL, DemoModel, DemoProvider, calculate, reply, shown_blocks

pytestmark = pytest.mark.anyio

INSERT = ToolSchema("memory_insert", "", {})
APPEND = ToolSchema("core_memory_append", "", {})


def block(label: str, value: str) -> str:
    return (
        f"<{label}>\n<description>\n\n</description>\n<metadata>\n- chars_limit=9\n</metadata>\n"
        f"<value>\n{value}\n</value>\n</{label}>"
    )


SYSTEM = (
    f"Be kind.\n\n<memory_blocks>\n{block('persona', 'I am Sam.')}\n\n{block('human', 'Likes tea.')}\n</memory_blocks>"
)


def say(text: str, **fields: Any) -> str | ToolCall:
    return reply(asking(message(text=text), **{"system": SYSTEM, "tools": [INSERT], **fields}))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("remember that I like tea", "I like tea"), ("Please remember I like tea", "I like tea"),
        ("NOTE that the key is under the mat", "the key is under the mat"), ("memorize 42", "42"),
        ("my name is Ann", "my name is Ann"), ("I live in Rome", "I live in Rome"), ("call me Al", "call me Al"),
        ("remember\nthis\nand that", "this\nand that"), ('remember "quotes" and ü', '"quotes" and ü'),
    ],
)  # fmt: skip
def test_a_fact_is_remembered_through_a_tool(text: str, fact: str) -> None:
    """It goes to the block about the human, through the memory tool at hand."""
    made = say(text)
    assert isinstance(made, ToolCall)
    assert (made.name, json.loads(made.arguments)) == ("memory_insert", {"label": "human", "new_string": fact})
    made = say(text, tools=[APPEND])
    assert isinstance(made, ToolCall)
    assert (made.name, json.loads(made.arguments)) == ("core_memory_append", {"label": "human", "content": fact})


def test_without_a_human_block_the_first_one_will_do() -> None:
    """What is there is used; what is missing is said."""
    made = say("remember tea", system=block("notes", ""))
    assert isinstance(made, ToolCall)
    assert json.loads(made.arguments)["label"] == "notes"
    assert str(say("remember tea", system="")).startswith("I have no memory block to note that in.")
    assert str(say("remember tea", tools=[])).startswith("I have no memory tool to note that with.")


@pytest.mark.parametrize("text", ["what do you know?", "Recall!", "Do you remember me?", "who am I", "What's my name?"])
def test_recall_tells_what_the_system_text_shows(text: str) -> None:
    """Every block that says something, by its label."""
    assert say(text) == "This is in my memory:\npersona: I am Sam.\nhuman: Likes tea."
    assert say(text, system=block("human", "")) == f"My memory is empty. {LABEL}"


def test_recall_is_not_endless() -> None:
    """A block of any size is told by its beginning."""
    assert len(str(say("recall", system=block("human", "x" * 100_000)))) < 2100


@pytest.mark.parametrize(
    ("text", "answer"),
    [("12*7", "12*7 = 84"), ("What is 2 + 2?", "2 + 2 = 4"), ("calculate (1+2)*3", "(1+2)*3 = 9"),
     ("how much is 10 / 4 ?", "10 / 4 = 2.5"), ("compute 7%4", "7%4 = 3")],
)  # fmt: skip
def test_sums(text: str, answer: str) -> None:
    """A question that is a sum is answered by its value."""
    assert say(text) == answer


@pytest.mark.parametrize("text", ["hello", "12/0", "2^3", "2**99", "1-", "9999999*9999999999", "what is love"])
def test_anything_else_gets_the_label_and_a_hint(text: str) -> None:
    """It says that it is a script, what it heard, and what to try."""
    answer = str(say(text))
    assert answer.startswith(f"{LABEL} You said: {text!r}. Try")
    assert "OPENAI_API_KEY" in answer


def test_an_empty_conversation() -> None:
    """Even to nobody it introduces itself."""
    assert str(reply(ModelRequest(model="demo", system="", messages=[]))).startswith(LABEL)
    assert str(reply(asking(message("approval")))).startswith(LABEL)


def test_after_a_tool() -> None:
    """A result ends the turn: well, or with what went wrong."""
    done, failed = (
        message("tool", tool_returns=(ToolReturn("c", "no such block", status=status),))
        for status in ("success", "error")
    )
    assert reply(asking(done)) == "I will remember that."
    assert reply(asking(failed)) == "That did not work: no such block"
    assert reply(asking(message("tool"))) == "That did not work: nothing"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+1", "2"), ("2*3+4", "10"), ("2*(3+4)", "14"), ("-5", "-5"), ("--5", "5"), ("+5", "5"), ("7/2", "3.5"),
        ("7%4", "3"), ("0.1+0.2", "0.3"), ("1e3", "1000"), ("123456*1000000", "123456000000"), ("-0", "0"),
        ("1/3", "0.333333333333333"), ("1e15", "1e+15"),
        ("1/0", None), ("1%0", None), ("2e15", None), ("1e999", None), ("-1e999", None), ("9" * 5000, None),
        ("9**9**9**9", None), ("2**8", None), ("1<<99999999", None), ("1e15*1e15", None), ("7//2", None),
        ("(" * 5000 + "1" + ")" * 5000, None), ("(" * 90 + "1" + ")" * 90, "1"), ("-" * 199 + "1", "-1"),
        ("-" * 100_000 + "1", None), ("1+" * 50_000 + "1", None),
        ("__import__('os').system('true')", None), ("open('/etc/passwd')", None), ("a", None), ("True", None),
        ("'a'*9", None), ("[1]*9", None), ("(lambda: 1)()", None), ("1j*1j", None), ("None", None), ("", None),
        (" ", None), ("1+", None), (")(", None), ("1 1", None), ("1\n+1", None), ("\x00", None), ("1\x00", None),
        ("１+1", None), ("1;2", None), ("x:=1", None), ("...", None), ("1 if 1 else 2", None),
    ],
)  # fmt: skip
def test_calculate(text: str, value: str | None) -> None:
    """Numbers and + - * / % ( ) only; whatever is more, or too large, is no sum."""
    assert calculate(text) == value


@given(st.text(alphabet=st.sampled_from("0123456789.+-*/%() e^j_"), max_size=60))
def test_calculate_never_raises(text: str) -> None:
    """Nor does it take long, since nothing can grow beyond its largest number."""
    calculate(text)


odd_text = st.text(st.characters(), max_size=200) | st.sampled_from(
    ["remember ", "recall", "what is ", "<human>\n<description>", "\n<value>\n", "\ud800", "remember \ud800"]
)


@given(odd_text, odd_text, st.booleans())
def test_any_request_has_a_reply(text: str, system: str, has_tool: bool) -> None:
    """Hostile words, and hostile memory, are answered like any other."""
    said = reply(asking(message(text=text), system=system + SYSTEM, tools=[INSERT] if has_tool else []))
    if isinstance(said, ToolCall):
        assert json.loads(said.arguments)["new_string"]
        said.arguments.encode()
    else:
        assert said


@pytest.mark.parametrize(
    "text", ["what is" + " " * 1990 + "x", "1" * 1999 + "x", "remember" + " " * 5000, "(" * 2000, " " * 10**6]
)
def test_long_words_take_no_time(text: str) -> None:
    """No text makes its patterns search for long: the server has other things to do."""
    began = time.process_time()
    say(text)
    assert time.process_time() - began < 0.1


def test_a_large_memory_takes_no_time() -> None:
    """Nor does a system message full of things that look like blocks and are none."""
    began = time.process_time()
    say("recall", system="<a>\n<description>" * 50_000)
    say("recall", system="<a>\n<description><value>\n" * 50_000)
    assert time.process_time() - began < 0.5


def test_reads_blocks_as_the_system_message_shows_them() -> None:
    """The demo reads what `memory` really writes, values with tags of their own included."""
    values = {"human": "Likes tea.\n<x>\n<description>\n", "empty": ""}
    at = message().created_at
    blocks = [
        Block(id=f"block-{label}", label=label, value=value, created_at=at, updated_at=at)
        for label, value in values.items()
    ]
    agent = Agent(
        id="agent-1", name="a", agent_type="letta_v1_agent", system="", model="demo/demo", llm={}, created_at=at,
        updated_at=at,
    )  # fmt: skip
    assert shown_blocks(compile_system(agent, blocks, [], compiled_at=at)) == values


# --- as a model --------------------------------------------------------------------------------------------------


async def test_streams_word_by_word() -> None:
    """The fragments are the words with their blanks; together they are the answer."""
    heard = await hear(DemoModel(), asking(message(text="hello")))
    assert len(heard.fragments) > 10
    assert heard.answer.content == (Text(heard.text),)
    assert heard.answer.finish == "stop"
    assert heard.answer.usage.total_tokens == heard.answer.usage.prompt_tokens + heard.answer.usage.completion_tokens


async def test_a_tool_call_as_a_model_makes_it() -> None:
    """First the name, then the arguments, then the answer with the whole call."""
    heard = await hear(DemoModel(), asking(message(text="remember tea"), system=SYSTEM, tools=[INSERT]))
    first, second = heard.fragments
    assert isinstance(first, CallPiece)
    assert isinstance(second, CallPiece)
    (made,) = heard.answer.tool_calls
    assert (first.name, second.arguments) == ("memory_insert", made.arguments)
    assert first.id == second.id == made.id
    assert heard.answer.finish == "tool_calls"


async def test_a_long_answer_is_told_faster() -> None:
    """The pauses are there to look like a model, not to make anybody wait: two seconds of them at most."""
    async with asyncio.timeout(10):
        heard = await hear(DemoModel(pause=1.0), asking(message(text="recall"), system=block("human", "a " * 500)))
    assert len(heard.fragments) > 500


async def test_the_provider_offers_one_model() -> None:
    """`demo/demo`, always there."""
    provider = DemoProvider(pause=0)
    (info,) = await provider.list_models()
    assert info.handle == "demo/demo"
    assert (await hear(provider.open(info), asking(message(text="1+1=")))).text
    await provider.close()
