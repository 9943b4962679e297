"""plan.md: what a reader sees of a plan."""

from blue.stages import plan_report

PLAN = {
    "topology": "v6e:2x4",
    "chips": 8,
    "hbm_gib_per_chip": 31.25,
    "resident_gib": {"profiler": 0.466, "optimizer": 0.93, "total": 1.396},
    "programs": {
        "update": {
            "flops_per_chip": 50.42e12,
            "formula_flops_per_chip": 49.9e12,
            "bytes_per_chip": 2.5e12,
            "hbm_gib": {
                "arguments": 1.4,
                "temporaries": 40.0,
                "output": 0.1,
                "total": 41.5,
            },
            "collectives": {
                "all-gather": {"count": 52, "bytes": 4e9},
                "all-reduce": {"count": 3, "bytes": 1.5e9},
            },
            "roofline_s": {"compute": 0.0549, "memory": 1.526, "network": 0.0175},
            "bound": "memory",
            "times_a_step": 1,
            "largest": [
                {"name": "small", "gib": 0.5},
                {"name": "head logits", "gib": 12.25},
            ],
            "fits": False,
        },
        "relayout": {
            "flops_per_chip": 0,
            "hbm_gib": {"total": 2.33},
            "collectives": {},
            "roofline_s": {"compute": 0.0, "memory": 1.4e-3, "network": 9.3e-6},
            "fits": True,
        },
    },
    "step": {
        "seconds": 3.25,
        "phases": {"rollout": 1.7, "update": 1.55},
        "tokens_per_s": 80659.7,
    },
    "advice": ["microbatch_size=8 halves the activations"],
}


def row(text, name):
    """Cells of the first table row that begins with `name`."""
    line = next(x for x in text.splitlines() if x.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text, title):
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_number_of_a_plan_is_there_in_its_unit():
    text = plan_report.render(PLAN)
    assert text.startswith("# Plan for v6e:2x4\n\n8 chips of 31.25 GiB HBM.")
    assert "**Does not fit: update.**" in text
    assert row(section(text, "Resident arrays"), "profiler")[1] == "0.466"
    memory = section(text, "Memory of the programs")
    assert row(memory, "update")[1:] == ["1.40", "40.00", "0.1", "41.50", "**no**"]
    assert row(memory, "relayout")[1:] == ["-", "-", "-", "2.33", "yes"]
    work = section(text, "Work of the programs")
    # an all-reduce goes round twice: 4 + 2 * 1.5 GB
    assert row(work, "update")[1:5] == ["50.42", "49.90", "2,500", "7.00"]
    assert row(work, "update")[5:] == ["54.90 ms", "1.53 s", "17.50 ms", "memory", "1"]
    assert row(work, "relayout")[1:5] == ["0.00", "-", "-", "0.00"]
    assert row(work, "relayout")[5:8] == ["0.00 us", "1.40 ms", "9.30 us"]
    assert "| update | all-gather | 52 | 4.00 |" in section(text, "Collectives")
    step = section(text, "A training step, estimated")
    assert row(step, "**step**")[1] == "3.25 s" and "80,660 sampled tokens/s" in step


def test_what_does_not_fit_names_the_largest_arrays_and_what_helps():
    text = plan_report.render(PLAN)
    misfits = section(text, "What does not fit")
    assert "update: 41.50 GiB" in misfits and "relayout" not in misfits
    assert misfits.index("head logits: 12.25 GiB") < misfits.index("small: 0.5 GiB")
    assert "* microbatch_size=8 halves" in section(text, "What would help")


def test_a_plan_with_the_least_renders_and_says_that_all_fits():
    least = {
        "topology": "v5e:4x4",
        "chips": 16,
        "hbm_gib_per_chip": 15.75,
        "resident_gib": {"encoder": 1.1},
        "programs": {"encode": {"fits": True}},
    }
    text = plan_report.render(least)
    assert "Every program fits." in text and "None" not in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Resident arrays",
        "## Memory of the programs",
        "## Work of the programs",
    ]
    widths = {line.count("|") for line in section(text, titles[-1][3:]).splitlines()}
    assert len(widths - {0}) == 1  # every row as wide as its head
