"""Steps of TRL's GRPOTrainer on a CPU; prints one JSON line.

Generation by transformers, a random Gemma 3 in float32, no gradient checkpointing.
Beside tools/bench/grpo_step.py. On a CPU its fused head scores the prompt's positions,
too; on a GPU it would not.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.SIZES], **measure.GRPO_STEP)

    import random

    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from tools.bench.peers import torch_models

    torch_models.use_threads(args.cpus)
    vocab, draw = measure.SIZES[args.size]["vocab"], random.Random(1)
    directory = tempfile.mkdtemp()
    model = torch_models.profiler(args.size)
    model.save_pretrained(directory)  # TRL loads it again as the reference
    torch_models.tokenizer(vocab).save_pretrained(directory)
    text = lambda: " ".join(str(draw.randrange(4, vocab)) for _ in range(args.prompt))
    texts = [text() for _ in range(args.users * (args.steps + 1))]
    names = ("step", "generation", "ref_logprob", "policy_forward", "prepare")
    clocks: dict[str, list[measure.Clock]] = {name: [] for name in names}
    seen = {}

    class Timed(GRPOTrainer):
        """GRPOTrainer with clocks around its parts."""

        def _generate_single_turn(self, prompt_ids, *rest, **named):
            seen["rollout_prompts"] = len(prompt_ids)
            distinct = {tuple(map(int, ids)) for ids in prompt_ids}
            seen["rollout_distinct_prompts"] = len(distinct)
            with measure.Clock() as clock:
                out = super()._generate_single_turn(prompt_ids, *rest, **named)
            clocks["generation"].append(clock)
            return out

        def _get_per_token_logps_and_entropies(self, model, input_ids, *rest, **named):
            name = "policy_forward" if torch.is_grad_enabled() else "ref_logprob"
            seen["logprob_input"] = list(input_ids.shape)
            with measure.Clock() as clock:
                out = super()._get_per_token_logps_and_entropies(
                    model, input_ids, *rest, **named
                )
            clocks[name].append(clock)
            return out

        def _prepare_inputs(self, batch):
            with measure.Clock() as clock:
                out = super()._prepare_inputs(batch)
            clocks["prepare"].append(clock)
            return out

    class Steps(TrainerCallback):
        """A clock around whole steps."""

        def on_step_begin(self, *_, **__):
            self.clock = measure.Clock().__enter__()

        def on_step_end(self, *_, **__):
            self.clock.__exit__()
            clocks["step"].append(self.clock)

    trainer = Timed(
        model=directory,
        args=GRPOConfig(
            output_dir=f"{directory}/out",
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=args.users * args.g,
            gradient_accumulation_steps=1,
            num_generations=args.g,
            max_completion_length=args.new,
            generation_kwargs={"min_new_tokens": args.new},
            model_init_kwargs={"dtype": "float32"},
            beta=0.01,
            loss_type="grpo",
            temperature=1.0,
            learning_rate=1e-6,
            max_steps=args.steps + 1,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=100,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=torch_models.tokenizer(vocab),
        callbacks=[Steps()],
        reward_funcs=lambda prompts, completions, **_: [
            measure.reward([int(w) for w in text.split() if w.isdigit()])
            for text in completions
        ],
    )
    trainer.train()
    update = []
    for step, prepare in zip(clocks["step"], clocks["prepare"], strict=True):
        left = measure.Clock()
        left.wall, left.cpu = step.wall - prepare.wall, step.cpu - prepare.cpu
        update.append(left)
    clocks["update"] = update
    measure.emit(
        "trl",
        "grpo_step",
        args,
        params_m=torch_models.num_params(model),
        first_step_wall_s=round(clocks["step"][0].wall, 2),
        **seen,
        **{
            key: value
            for name in (*names, "update")
            for key, value in measure.seconds(name, clocks[name][1:]).items()
        },
    )
