"""Text to token ids and back; text never produces control ids.

One class is for the tokenizers of Gemma 3 and Qwen3 (read from a Hugging Face
directory) and the small ones trained here. Control ids have a special meaning. They are
every token flagged special, and the added tokens written `<...>` or `[...]` that are
not HTML tags. Examples are Gemma's `<mask>`, `[multimodal]`, `<unused7>`, and Qwen's
`<think>`, `<tool_call>`. No text given to this class can produce one: `encode` matches
none, and `chat` takes them only from the model's own template.
"""

import gzip
import hashlib
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import tokenizers
from etils import epath

from blue.errors import UserError
from blue.text import unigram

# Gemma's vocabulary has these tags as added tokens; they are text like any other.
_HTML_TAG = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|"
    r"sub|sup|code|a|html|body|img|span|bbox|ul|li|div|iframe|footer)>"
)
_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_PLACEHOLDER = "\ue000"  # private use: not in any template

_SHORT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{{{{ '{unigram.START}' if message['role'] != 'assistant' else '' }}}}"
    f"{{{{ message['content'] | trim }}}}{unigram.END}"
    "{% endfor %}"
)


class _Turn(NamedTuple):
    """A rendered chat template, split at the user's message."""

    prefix: list[int]  # up to the last control token before the message
    head: str  # text from there to the message: "user\n"
    tail: str  # text from the message to the next control token: ""
    suffix: list[int]  # from that control token to the end
    cue: str  # text after the last control token: "model\n"


@final
class Tokenizer:
    """A tokenizer, its chat template and its special ids; immutable once built.

    Attributes:
        vocab_size: rows of an embedding for all possible ids.
        pad_id: fills rows up to their static length; masks, not this id, mark padding.
        bos_id: the id every chat starts with; None where the model has none.
        end_ids: ids that end a completion, any of them.
        turn_end_id: the end id that the chat template writes after a turn; the one
            to append to a completion in supervised training.
        pool_id: the id whose position an encoder pools.
        fingerprint: equal for tokenizers with equal results; 16 hexadecimal digits.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        config: dict[str, Any],
        chat_template: str | None,
        eos_ids: Sequence[int],
    ):
        """Wraps `backend`, which is modified and then owned by this object.

        Args:
            config: content of tokenizer_config.json.
            eos_ids: `eos_token_id` of generation_config.json; may be empty.

        Raises:
            UserError: a token the config names is missing, the template does not
                write the message exactly once, or text could produce a control id.
        """
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._config = {k: v for k, v in config.items() if k != "chat_template"}
        self._chat_template = chat_template
        self._json = backend.to_str()  # before control tokens are re-flagged below

        pad_id, eos_id = self._named_id("pad_token"), self._named_id("eos_token")
        if pad_id is None or eos_id is None:
            raise UserError(
                f"tokenizer_config.json must name pad_token and eos_token; it has "
                f"{config.get('pad_token')!r} and {config.get('eos_token')!r}"
            )
        self.pad_id = pad_id
        self.end_ids = tuple(dict.fromkeys([*eos_ids, eos_id]))

        added = backend.get_added_tokens_decoder()
        self._control = {i: t.content for i, t in added.items() if _is_control(t)}
        self._control_ids = frozenset(self._control)
        self._pool_prefix, self.pool_id = self._pooling(eos_id)
        self._turn, self.bos_id = self._read_template()
        self._forbid_control()

        before, after = (
            (self._turn.prefix, self._turn.suffix) if self._turn else ([], [])
        )
        closing = [i for i in after[:1] if i in self.end_ids]
        self.turn_end_id = closing[0] if closing else self.end_ids[0]
        used = {*added} - self._control_ids | {pad_id, self.pool_id, *self.end_ids}
        words = backend.get_vocab(with_added_tokens=False).values()
        self.vocab_size = max(*words, *used.union(before, after)) + 1
        state = [self._json, chat_template, self.end_ids, pad_id, self.bos_id]
        digest = hashlib.sha256(json.dumps([*state, self.pool_id]).encode())
        self.fingerprint = digest.hexdigest()[:16]

    # --- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special ids around it, no control id inside."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text; runs on all cores."""
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=False
        )
        rows = [encoding.ids for encoding in encodings]
        for ids in rows:
            assert self._control_ids.isdisjoint(ids), "text produced a control id"
        return rows

    def chat(self, message: str) -> list[int]:
        """Ids of one user turn and the opening of the answer, by the chat template.

        Equal to encoding the rendered template as a whole, except that control tokens
        inside `message` are text; space around `message` is dropped. Templates with a
        thinking switch have it off.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        return self.chat_batch([message])[0]

    def chat_batch(self, messages: Sequence[str]) -> list[list[int]]:
        """`chat` of every message; runs on all cores."""
        turn = self._required_turn()
        texts = [turn.head + message.strip() + turn.tail for message in messages]
        return [turn.prefix + ids + turn.suffix for ids in self.encode_batch(texts)]

    def pooled(self, text: str) -> list[int]:
        """Ids of `text` as an encoder reads it, the last one being `pool_id`."""
        return self.pooled_batch([text])[0]

    def pooled_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`pooled` of every text; runs on all cores."""
        rows = self.encode_batch(texts)
        return [[*self._pool_prefix, *ids, self.pool_id] for ids in rows]

    def letter_ids(self, n: int) -> list[int]:
        """Ids of "A", "B", ... (n of them) as the first token of an answer.

        Raises:
            UserError: `n` is not in 1..26, or a letter is more than one token.
        """
        if not 1 <= n <= 26:
            raise UserError(f"options have 1 to 26 letters, not {n}")
        cue = self._required_turn().cue
        before, ids = self.encode(cue), []
        for letter in string.ascii_uppercase[:n]:
            after = self.encode(cue + letter)
            if after[:-1] != before:
                raise UserError(f"the answer {letter!r} is not one token here")
            ids.append(after[-1])
        return ids

    # --- ids to text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids and ids without a token are left out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    # --- files

    def save(
        self,
        directory: epath.PathLike,
        *,
        pooled: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the files that `load_tokenizer` and Hugging Face libraries read.

        Args:
            pooled: for an encoder: the files then give the ids of `pooled`.
            sampling: further fields of generation_config.json.
        """
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        fields = dict(self._config)
        if pooled:
            fields["padding_side"] = "left"
            if "add_eos_token" in fields:  # transformers before 5 reads this field
                fields["add_eos_token"] = self.pool_id == self._named_id("eos_token")
        text = self._pooled_json() if pooled else self._json
        (directory / "tokenizer.json").write_text(text)
        config = json.dumps(fields, indent=2) + "\n"
        (directory / "tokenizer_config.json").write_text(config)
        if self._chat_template is not None:
            (directory / "chat_template.jinja").write_text(self._chat_template)
        generation = {"eos_token_id": list(self.end_ids), "pad_token_id": self.pad_id}
        if self.bos_id is not None:
            generation["bos_token_id"] = self.bos_id
        generation |= sampling or {}
        text = json.dumps(generation, indent=2) + "\n"
        (directory / "generation_config.json").write_text(text)

    def _pooled_json(self) -> str:
        """tokenizer.json that puts the pooling prefix and token around a text."""
        backend = tokenizers.Tokenizer.from_str(self._json)
        if backend.encode("a").ids == self.pooled("a"):
            return self._json
        content = json.loads(self._json)
        old = content["post_processor"] or {"type": "Sequence", "processors": []}
        kept = old["processors"] if old["type"] == "Sequence" else [old]
        kept = [step for step in kept if step["type"] == "ByteLevel"]  # adds no ids
        names = {i: backend.id_to_token(i) for i in [*self._pool_prefix, self.pool_id]}
        special = lambda i: {"SpecialToken": {"id": names[i], "type_id": 0}}
        part = lambda name: {"Sequence": {"id": name, "type_id": 0}}
        before, after = list(map(special, self._pool_prefix)), [special(self.pool_id)]
        template = {
            "type": "TemplateProcessing",
            "single": [*before, part("A"), *after],
            "pair": [*before, part("A"), part("B"), *after],
            "special_tokens": {
                name: {"id": name, "ids": [i], "tokens": [name]}
                for i, name in names.items()
            },
        }
        steps = {"type": "Sequence", "processors": [*kept, template]}
        content["post_processor"] = steps if kept else template
        return tokenizers.Tokenizer.from_str(json.dumps(content)).to_str()

    # --- set up

    def _named_id(self, name: str) -> int | None:
        """Id of the token that tokenizer_config.json calls `name`; None without."""
        token = _token_text(self._config.get(name))
        if token is None:
            return None
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise UserError(
                f"{name} {token!r} of tokenizer_config.json is not in tokenizer.json"
            )
        return token_id

    def _pooling(self, eos_id: int) -> tuple[list[int], int]:
        """Ids before a text, and the id after it, in an encoder's input.

        They are the ids that tokenizer.json adds around a text. Files saved by other
        tools may lose that step; Qwen3-Embedding then still pools at <|endoftext|>.
        """
        text = self._backend.encode("a", add_special_tokens=False).ids
        ids = self._backend.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(ids)) if ids[i : i + len(text)] == text)
        prefix, suffix = ids[:start], ids[start + len(text) :]
        if suffix:
            return prefix, suffix[-1]
        end_of_text = self._backend.token_to_id("<|endoftext|>")
        return prefix, eos_id if end_of_text is None else end_of_text

    def _read_template(self) -> tuple[_Turn | None, int | None]:
        """The chat template around one message, and the id chats start with."""
        bos_id = self._named_id("bos_token")
        bos = [] if bos_id is None or bos_id not in self._pool_prefix else [bos_id]
        if self._chat_template is None:
            return None, bos_id if bos else None
        text = _render(self._chat_template, _PLACEHOLDER, self._config)
        if text.count(_PLACEHOLDER) != 1:
            raise UserError(
                f"the chat template writes the message {text.count(_PLACEHOLDER)} "
                f"times; it must write it once"
            )
        before, after = text.split(_PLACEHOLDER)
        longest_first = sorted(self._control.values(), key=len, reverse=True)
        marks = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        cut = max((m.end() for m in marks.finditer(before)), default=0)
        found = marks.search(after)
        end = found.start() if found else len(after)
        cue = marks.split(text)[-1] if found else ""
        encode = lambda part: self._backend.encode(part, add_special_tokens=False).ids
        prefix, suffix = encode(before[:cut]), encode(after[end:])
        if bos_id not in prefix:
            # The template leaves BOS to the tokenizer, or the model has none.
            prefix, bos_id = bos + prefix, bos_id if bos else None
        elif (prefix + suffix).count(bos_id) > 1:
            raise UserError("the chat template writes bos_token twice; once is right")
        return _Turn(prefix, before[cut:], after[:end], suffix, cue), bos_id

    def _required_turn(self) -> _Turn:
        if self._turn is None:
            raise UserError(
                "the tokenizer has no chat template: chat_template.jinja is missing"
            )
        return self._turn

    def _forbid_control(self) -> None:
        """Makes the backend read control tokens as text, and checks that it does."""
        contents = list(self._control.values())
        # Tokens that are not flagged special would be matched despite the switch.
        self._backend.add_special_tokens(contents)
        self._backend.encode_special_tokens = True
        rows = self._backend.encode_batch_fast(contents, add_special_tokens=False)
        for content, row in zip(contents, rows, strict=True):
            if not self._control_ids.isdisjoint(row.ids):
                raise UserError(
                    f"tokenizer.json builds its control token {content!r} from plain "
                    f"text; such tokenizers are not supported"
                )


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
    """The tokenizer of a Hugging Face directory.

    Reads tokenizer.json, tokenizer_config.json and, where they exist,
    chat_template.jinja (else the template inside the config) and
    generation_config.json. Each may be gzipped, with `.gz` after its name.

    Raises:
        UserError: a file is missing or broken, or its content does not fit.
    """
    directory = epath.Path(directory)
    data = _read(directory, "tokenizer.json")
    if data is None:
        raise UserError(f"{directory} has no tokenizer.json (or tokenizer.json.gz)")
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{directory}/tokenizer.json: {error}") from None
    config = _read_json(directory, "tokenizer_config.json")
    if not config:
        raise UserError(f"{directory} has no tokenizer_config.json (or it is empty)")
    template = _read(directory, "chat_template.jinja")
    inline = config.get("chat_template")
    if isinstance(inline, list):  # several named templates
        inline = {t["name"]: t["template"] for t in inline}.get("default")
    eos_ids = _read_json(directory, "generation_config.json").get("eos_token_id", [])
    try:
        return Tokenizer(
            backend,
            config=config,
            chat_template=inline if template is None else template.decode(),
            eos_ids=[eos_ids] if isinstance(eos_ids, int) else eos_ids,
        )
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A small tokenizer of `texts` (text/unigram.py), the same for the same texts.

    Its chat template is as short as possible:
    `<bos><start_of_turn>MESSAGE<end_of_turn>` and then the answer.

    Args:
        texts: lines to train on: titles, and the wording of the templates.
        vocab_size: ids at most, 512 or more; little text gives fewer.

    Raises:
        UserError: no text, or `vocab_size` too small.
    """
    backend = unigram.train(texts, vocab_size=vocab_size)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "pad_token": unigram.PAD,
        "eos_token": unigram.EOS,
        "bos_token": unigram.BOS,
        "unk_token": unigram.UNK,
    }
    ends = [backend.token_to_id(token) for token in (unigram.EOS, unigram.END)]
    return Tokenizer(
        backend,
        config=config,
        chat_template=_SHORT_TEMPLATE,
        eos_ids=[i for i in ends if i is not None],
    )


def _is_control(token: tokenizers.AddedToken) -> bool:
    """Whether an added token is a control token."""
    bracketed = _BRACKETED.fullmatch(token.content) is not None
    return token.special or bracketed and _HTML_TAG.fullmatch(token.content) is None


def _render(template: str, message: str, config: dict[str, Any]) -> str:
    """The template's text for one user message, up to where the answer starts."""
    from transformers.utils.chat_template_utils import render_jinja_template

    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special: dict[str, Any] = {name: _token_text(config.get(name)) for name in names}
    rendered, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": message}]],
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,
        **special,
    )
    return rendered[0]


def _token_text(token: Any) -> str | None:
    """The text of a token in a config: a string, or an object with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _read(directory: epath.Path, name: str) -> bytes | None:
    """Content of a file that may be gzipped; None if it does not exist."""
    if (directory / name).exists():
        return (directory / name).read_bytes()
    if (directory / f"{name}.gz").exists():
        return gzip.decompress((directory / f"{name}.gz").read_bytes())
    return None


def _read_json(directory: epath.Path, name: str) -> dict[str, Any]:
    """A JSON object in a file that may be gzipped; empty if it does not exist."""
    data = _read(directory, name)
    try:
        content = {} if data is None else json.loads(data)
    except ValueError as error:
        raise UserError(f"{directory}/{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{directory}/{name} is not a JSON object")
    return content
