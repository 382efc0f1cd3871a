"""vLLM under Ray Data's processor for language models: rows in, rows out, no server. Needs the extra `vllm`."""

from __future__ import annotations

import base64
import importlib.util
from typing import Any

from pipelines.judge.exchange import Answer, Request
from pipelines.judge.settings import JudgeSettings
from sama.errors import InputError


def check() -> None:
    """InputError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "judge.backend vllm needs the extra: pip install 'sama-pipelines[vllm]', on machines with GPUs"
        )


def processor(settings: JudgeSettings) -> Any:
    """A function from Dataset to Dataset, on engine replicas of its own.

    in:  rows of `engine_row`. out: the same rows with generated_text, num_input_tokens, num_generated_tokens;
         those that failed have `__inference_error__` instead
    """
    check()
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = {"enable_prefix_caching": True, "limit_mm_per_prompt": {"image": 2 * settings.frames}, **settings.engine}
    if settings.revision:
        engine["revision"] = settings.revision
    config = vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs=engine,
        concurrency=settings.actors,
        batch_size=settings.in_flight,
        should_continue_on_error=True,  # one bad row must not stop the job
        prepare_multimodal_stage={"enabled": True, "chat_template_content_format": "openai"},
        chat_template_stage={"enabled": True},
        tokenize_stage={"enabled": False},  # the engine does both for prompts with pictures
        detokenize_stage={"enabled": False},
    )
    return build_processor(config)


def engine_row(settings: JudgeSettings, request: Request, turn: int, seed: int) -> dict[str, Any]:
    """Columns `messages` and `sampling_params` of one turn. The engine's prefix cache knows shared pictures again."""
    pictures = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}}
        for image in request.images
    ]
    sampling: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": seed}
    if settings.json_schema is not False:
        sampling["structured_outputs"] = {"json": request.schema}
    system = [{"type": "text", "text": request.system}]
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": [*pictures, {"type": "text", "text": request.text}]},
    ]
    return {"turn": turn, "seed": seed, "messages": messages, "sampling_params": sampling}


def answer_of(row: dict[str, Any]) -> Answer:
    """The answer in a row that came out of the processor."""
    error = row.get("__inference_error__")
    if error:
        return Answer(int(row["turn"]), int(row["seed"]), "http_error", error=" ".join(str(error).split())[:300])
    return Answer(
        int(row["turn"]), int(row["seed"]), "ok", text=row["generated_text"], host="vllm",
        prompt_tokens=int(row["num_input_tokens"]), completion_tokens=int(row["num_generated_tokens"]),
    )  # fmt: skip
