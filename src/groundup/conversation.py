"""Talking with a model: what was said so far goes in, the reply comes out piece by piece."""

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from groundup import record
from groundup.errors import InputError
from groundup.model import check_model_path, load_whole
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, TextIteratorStreamer

NO_CHAT = ("random", "pretrain")  # rungs whose tokenizer has the template that their weights have not learned yet
LONGEST_REPLY = 256  # tokens, where neither the model nor the user says
Message = dict[str, str]  # role and content


class Stopped(StoppingCriteria):
    """Generation ends when the event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.full((input_ids.size(0),), self.event.is_set(), device=input_ids.device)


class Reply:
    """Pieces of text as they are generated. When they have ended, `tokens` and `finish` ("stop" or "length") are known.

    Leaving the iteration early, or `stop()`, ends the generation at its next token.
    """

    def __init__(self, speaker: "Speaker", ids: torch.Tensor, settings: Any, seed: int | None):
        self.speaker, self.prompt_tokens, self.tokens, self.finish = speaker, ids.size(1), 0, "stop"
        self.ids, self.settings, self.seed = ids, settings, seed
        self.stopped, self.error = threading.Event(), None

    def stop(self) -> None:
        self.stopped.set()

    def __iter__(self) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.speaker.tokenizer, skip_prompt=True, skip_special_tokens=True)
        thread = threading.Thread(target=self._generate, args=(streamer,))  # no daemon: within PyTorch it would abort the process
        thread.start()
        try:
            yield from filter(None, streamer)
        finally:
            self.stop()
            thread.join()
        if self.error:
            raise self.error

    def _generate(self, streamer: TextIteratorStreamer) -> None:
        try:
            with self.speaker.lock:  # models share the cores: a second question waits
                if self.seed is not None:
                    torch.manual_seed(self.seed % 2**63)
                said = self.speaker.model.generate(
                    self.ids,
                    attention_mask=torch.ones_like(self.ids),
                    generation_config=self.settings,
                    streamer=streamer,
                    stopping_criteria=[Stopped(self.stopped)],
                )
            self.tokens = said.size(1) - self.prompt_tokens
            ends = torch.tensor([] if self.settings.eos_token_id is None else self.settings.eos_token_id, device=said.device)
            if self.tokens == self.settings.max_new_tokens and not torch.isin(said[0, -1], ends):
                self.finish = "length"
        except BaseException as error:  # raised where the reply is read
            self.error = error
            streamer.end()


class Speaker:
    """A model that replies, or, if it has learned no turns, goes on with the last message as text.

    Args:
        path: stage directory or Hub id.
        name: what it is called.

    Raises:
        InputError: no model, an adapter, or a reward model.
    """

    lock = threading.Lock()

    def __init__(self, path: str, name: str | None = None):
        check_model_path(path)
        if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
            raise InputError("an adapter is no model", path, f"python recipes/merge.py {path} {path.rstrip('/')}_merged")
        try:
            kinds = AutoConfig.from_pretrained(path).architectures or []
        except (OSError, ValueError) as error:
            raise InputError(f"no model in `{path}`: {str(error)[:200]}", fix="check the path or the id") from None
        if any("SequenceClassification" in kind for kind in kinds):
            raise InputError("a reward model scores text and writes none", path, "name the policy that it trained")
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.model = load_whole(AutoModelForCausalLM, path, dtype=dtype).to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.name = name or path
        rung = (record.read(path) or {}).get("rung") if Path(path).is_dir() else None
        self.chats = bool(self.tokenizer.chat_template) and rung not in NO_CHAT
        config = self.model.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length

    @property
    def takes_system(self) -> bool:
        """Whether its template writes a system message."""
        asked = [{"role": "system", "content": "GROUND"}, {"role": "user", "content": "up"}]
        try:
            return self.chats and "GROUND" in self.tokenizer.apply_chat_template(asked, tokenize=False)
        except TemplateError:
            return False

    def reply(
        self,
        messages: list[Message],
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        top_p: float | None = None,
    ) -> Reply:
        """What comes after `messages`, the last of which is the user's. The oldest turns are left out where there is no room.

        Args:
            temperature: 0 for the likeliest token at each place; None for the model's own setting.
            max_tokens: of the reply; None for the model's own setting.
            top_p: of what is sampled; None for the model's own setting.

        Raises:
            InputError: the last message alone leaves no room for a reply, or a message or setting that cannot be.
        """
        settings = copy.deepcopy(self.model.generation_config)
        wanted = max_tokens if max_tokens is not None else settings.max_new_tokens or LONGEST_REPLY
        if wanted < 1 or temperature is not None and not 0 <= temperature <= 100 or top_p is not None and not 0 < top_p <= 1:
            fix = "a temperature from 0, a token or more, a top_p up to 1"
            raise InputError(f"temperature {temperature}, {wanted} tokens, top_p {top_p}: cannot be", fix=fix)
        if temperature is not None:
            settings.do_sample, settings.temperature = temperature > 0, temperature or None
        settings.top_p = settings.top_p if top_p is None else top_p
        settings.max_length = None
        if settings.pad_token_id is None:
            settings.pad_token_id = self.tokenizer.pad_token_id
        ids = self.fit(messages, self.context - min(wanted, self.context // 2))
        settings.max_new_tokens = min(wanted, self.context - ids.size(1))
        return Reply(self, ids.to(self.device), settings, seed)

    def fit(self, messages: list[Message], room: int) -> torch.Tensor:
        """Token ids (1, T) of the newest turns that take at most `room`, from a user's on, and of a system message."""
        for message in messages:
            message["content"].encode()  # UnicodeEncodeError: half a character, which no tokenizer takes
        if not self.chats:
            ids = self.tokenizer(messages[-1]["content"], return_tensors="pt")["input_ids"]
            if not ids.size(1):
                raise InputError("nothing to go on with", fix="write the beginning of a text")
            return ids[:, -room:].long()
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(system) :]
        if not turns:
            raise InputError("nothing was asked", "messages", "add a message of the user's")
        while turns:
            try:
                ids = self.tokenizer.apply_chat_template(system + turns, add_generation_prompt=True, return_tensors="pt")[
                    "input_ids"
                ]
            except TemplateError as error:
                raise InputError(f"`{self.name}` takes no such messages: {error}", "messages") from None
            if ids.size(1) <= room:
                return ids
            turns = turns[1:]
            while turns and turns[0]["role"] != "user":
                turns = turns[1:]
        raise InputError(f"the message is longer than the {room} tokens that `{self.name}` can read", fix="make it shorter")


def short_names(models: list[str]) -> list[str]:
    """Each path without what all of them begin with."""
    paths = [path.rstrip("/") for path in models]
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths
