"""transformers samples `--g` completions for each of `--users` prompts; prints one
JSON line.

`generate` of a random Gemma 3 in float32. Beside tools/bench/generate.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.SIZES], **measure.GENERATE)

    import torch

    from tools.bench.peers import torch_models

    torch_models.use_threads(args.cpus)
    model = torch_models.profiler(args.size).eval()
    shape, draw = (args.users, args.prompt), torch.Generator().manual_seed(1)
    tokens = torch.randint(4, model.config.vocab_size, shape, generator=draw)
    begun, calls = [], []

    # Hooks: a wrapped forward would hide its signature from `generate`, which then
    # takes the logits of every position.
    def before(module, positional, named):
        begun.append(measure.Clock().__enter__())

    def after(module, positional, named, out):
        clock = begun.pop()
        clock.__exit__()
        ids = named["input_ids"] if "input_ids" in named else positional[0]
        calls.append((list(ids.shape), clock))

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)
    whole, prefill, decode = [], [], []
    for number in range(args.reps + 1):
        calls.clear()
        torch.manual_seed(number)
        with measure.Clock() as clock, torch.no_grad():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=args.g,
                max_new_tokens=args.new,
                min_new_tokens=args.new,
                pad_token_id=measure.PAD,
            )
        assert out.shape == (args.users * args.g, args.prompt + args.new), out.shape
        rest = measure.Clock()
        rest.wall = clock.wall - calls[0][1].wall
        rest.cpu = clock.cpu - calls[0][1].cpu
        whole.append(clock)
        prefill.append(calls[0][1])
        decode.append(rest)
    measure.emit(
        "transformers",
        "generate",
        args,
        params_m=torch_models.num_params(model),
        prefill_input=calls[0][0],
        first_call_s=round(whole[0].wall, 2),
        **measure.generation_figures(
            args, whole[1:], prefill[1:], decode[1:], args.new - 1
        ),
    )
