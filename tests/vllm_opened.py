"""Opens a model folder in vLLM, as whoever has vLLM alone does, and prints what it computes.

    python vllm_opened.py FOLDER TRUST < [[prompt ids, completion ids], ...]

One JSON line for each pair: log-probabilities of the completion's tokens, and the greedy completion of equal length.
"""

import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"


def main() -> None:
    from vllm import LLM, SamplingParams

    folder, trust = sys.argv[1], sys.argv[2] == "True"
    engine = LLM(
        folder, dtype="float32", enforce_eager=True, trust_remote_code=trust, max_model_len=128, max_num_seqs=8
    )
    rows = []
    for prompt, completion in json.load(sys.stdin):

        def ask(ids: list[int], **settings: int) -> object:
            (output,) = engine.generate(
                [{"prompt_token_ids": ids}], SamplingParams(temperature=0, **settings), use_tqdm=False
            )
            return output

        read = ask(prompt + completion, max_tokens=1, prompt_logprobs=1)
        logprobs = [
            read.prompt_logprobs[len(prompt) + k][token].logprob  # type: ignore[attr-defined]
            for k, token in enumerate(completion)
        ]
        written = ask(prompt, max_tokens=len(completion))
        rows.append([logprobs, list(written.outputs[0].token_ids)])  # type: ignore[attr-defined]
    print("\n" + json.dumps(rows))


if __name__ == "__main__":
    main()
