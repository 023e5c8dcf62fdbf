"""`ttrl-pop serve` with vLLM's real server, asked by OpenAI's own client."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import PROBLEMS
from vllm_models import Models
from vllm_servers import TINY, Serving, environment, free_port

import ttrl_pop

SETTINGS = (
    "--raw --model model --minds 5 --seed 3 --quiet --set vote.grader=exact --set vote.extract=regex:.(.) "
    "--set sampling.max_new_tokens=6 --set population.options.sigma=0.3 --set learn.lora.rank=8"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Path:
    """A folder with a trained run."""
    folder = tmp_path_factory.mktemp("serve")
    problems = "".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in PROBLEMS)
    (folder / "problems.jsonl").write_text(problems)
    (folder / "model").symlink_to(models.path("llama"))
    _run(folder, f"run problems.jsonl {SETTINGS} --steps 2 --lr 3e-2 --out trained")
    return folder


def _run(folder: Path, text: str) -> str:
    command = [sys.executable, "-m", "ttrl_pop", *text.split()]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Serving]:
    port = free_port()
    command = [sys.executable, "-m", "ttrl_pop", "serve", str(place / "trained"), "--name", "tiny", "--port", str(port)]
    started = Serving([*command, "--", *TINY, "--api-key", "secret"], port, place / "log", VLLM_API_KEY="secret")
    try:
        yield started.wait()
    finally:
        started.stop()


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret")


def complete(client: Any, model: str, **more: Any) -> Any:
    return client.completions.create(
        model=model, prompt=PROBLEMS[0].prompt, **{"max_tokens": 6, "temperature": 0, **more}
    )


def test_the_client_lists_the_names_and_uses_them(client: Any) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["tiny", "tiny/vote", "tiny/base", *(f"tiny/mind-{n}" for n in range(1, 6))]
    texts = {name: complete(client, name) for name in names}
    assert {name: text.model for name, text in texts.items()} == {name: name for name in names}
    # Minds differ from each other, from the mean, and that from the base model.
    assert len({text.choices[0].text for text in texts.values()}) >= 5


def test_each_name_writes_as_the_run_does(client: Any, place: Path) -> None:
    """Greedily, as the learner's own engine under the same weights and mind."""
    from ttrl_pop.model.prompts import encode
    from ttrl_pop.sample.backend import Request
    from ttrl_pop.types import Mind

    run = ttrl_pop.open(place / "trained", sampling={"temperature": 0.0, "max_new_tokens": 6})
    policy = run._opened(PROBLEMS[0].prompt).backend
    ids = tuple(encode(policy.policy.model.tokenizer, PROBLEMS[0]))
    cases = [("tiny", Mind(0), "policy"), ("tiny/mind-7", Mind(7), "policy"), ("tiny/base", None, "base")]
    for name, mind, weights in cases:
        ((_, own),) = policy.rollouts([Request(ids, mind, ("x",))], weights)
        assert complete(client, name).choices[0].text == own.text
    assert complete(client, "tiny").choices[0].text != complete(client, "tiny/base").choices[0].text


def test_a_client_without_a_mind_gets_the_mean_mind(client: Any) -> None:
    mean = complete(client, "tiny").choices[0].text
    assert complete(client, "tiny", extra_body={"vllm_xargs": {"mind": 0}}).choices[0].text == mean
    assert complete(client, "tiny", extra_body={"vllm_xargs": {"mind": 7}}).choices[0].text != mean
    assert complete(client, "tiny/mind-0").choices[0].text == mean


def test_a_chat_and_a_stream_go_under_the_names_too(client: Any) -> None:
    messages = [{"role": "user", "content": "7 x 8?"}]
    given = {"messages": messages, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(model="tiny/mind-7", **given)
    parts = list(client.chat.completions.create(model="tiny/mind-7", stream=True, **given))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == (
        whole.choices[0].message.content
    )
    assert {part.model for part in parts} == {whole.model} == {"tiny/mind-7"}
    voted = client.chat.completions.create(model="tiny/vote", **given)
    assert voted.vote["rollouts"] == 5


def test_a_vote_has_the_label_of_eval(client: Any, place: Path) -> None:
    """`sample` writes what `eval` votes on: the same minds and streams, in vLLM's own engine."""
    options = "--set backend_options.cpu_cache=0.1 --set backend_options.max_model_len=256"
    rows = _run(place, f"sample problems.jsonl --raw --run trained --backend vllm {options} --quiet").splitlines()
    labels = {row["id"]: row for row in ttrl_pop.vote([json.loads(row) for row in rows], **VOTE)}
    assert len({row["label"] for row in labels.values()}) > 1
    for problem in PROBLEMS:
        reply = client.completions.create(
            model="tiny/vote", prompt=problem.prompt, extra_body={"metadata": {"id": problem.id}}
        )
        told, own = reply.vote, labels[problem.id]
        assert told["label"] == own["label"]
        assert told["agreement"] == own["agreement"]
        assert told["minds"] == [str(json.loads(row)["mind"]) for row in rows if json.loads(row)["id"] == problem.id]


VOTE: dict[str, Any] = {"vote": {"grader": "exact", "extract": "regex:.(.)"}}


def test_nobody_else_is_answered(server: Serving, client: Any) -> None:
    import openai

    assert server.ask("/v1/models")[0] == 401
    assert server.ask("/v1/completions", {"model": "tiny/vote", "prompt": "x"})[0] == 401
    with pytest.raises(openai.NotFoundError, match="there are tiny, tiny/vote, tiny/base"):
        complete(client, "gpt-4")
    with pytest.raises(openai.BadRequestError, match="a mind is a seed"):
        complete(client, "tiny", extra_body={"vllm_xargs": {"mind": "x"}})
    assert complete(client, "tiny").choices[0].text
