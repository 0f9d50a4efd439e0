"""What the user reads after a mistake: one line, exit code 2, nothing written. Exact texts."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from sweeps.records import ledger

PARAMS = "optimizer.optimizer_params"
LR = f"{PARAMS}.lr"
ADAMW_KEYS = (
    "backend, betas, eps, groups, lr, lr_schedule, mup_base_n_embd, name, warm_up_fraction, "
    "weight_decay"
)

CASES = {
    "short name of a nested key": (
        ["lr=0.1"],
        (
            "unknown key lr in the config; must be one of: check, cluster, data, device, dry_run, "
            "model, optimizer, paths, seed, task, training; did you mean "
            "optimizer.optimizer_params.lr?"
        ),
    ),
    "key without its middle": (
        ["training.max_steps=3"],
        (
            "unknown key max_steps in training; must be one of: training_params; did you mean "
            "training.training_params.max_steps?"
        ),
    ),
    "override as an option": (
        ["--optimizer=adamw"],
        "unknown option --optimizer; did you mean optimizer=adamw?",
    ),
    "dry run as an option": (["--dry-run"], "unknown option --dry-run; did you mean dry_run=true?"),
    "unknown key": (
        ["optimizer.optimizer_params.lrr=1"],
        (
            f"unknown key lrr in optimizer.optimizer_params; must be one of: {ADAMW_KEYS}; "
            "did you mean lr?"
        ),
    ),
    "unknown key added with a plus": (
        ["+optimizer.optimizer_params.lrr=1"],
        (
            f"unknown key lrr in optimizer.optimizer_params; must be one of: {ADAMW_KEYS}; "
            "did you mean lr?"
        ),
    ),
    "unknown group": (
        ["optimzer=adamw"],
        (
            "unknown key optimzer in the config; must be one of: check, cluster, data, device, dry_run, "
            "model, optimizer, paths, seed, task, training; did you mean optimizer?"
        ),
    ),
    "group that the defaults leave out": (
        ["logging.logging_params.save_ckpt_step=5"],
        (
            "logging.logging_params.save_ckpt_step=5: no logging is chosen; "
            "write +logging=default before it"
        ),
    ),
    "group added with a plus that the defaults have": (
        ["+debug=profile"],
        "+debug=profile: debug is in the defaults list; write debug=profile",
    ),
    "group without the plus that it takes": (
        ["-m", "seed=1,2", "logging=wandb"],
        "logging=wandb: logging is not in the defaults list; write +logging=wandb",
    ),
    "value that has no default": (
        ["data=text"],
        "data.dataset.path is missing; it has no default: data.dataset.path=VALUE",
    ),
    "several processes for one run": (
        ["cluster.tasks_per_node=2"],
        (
            "cluster.tasks_per_node = 2; must be 1: a run by itself is one process; "
            "-m cluster=slurm takes more"
        ),
    ),
    "wrong type": ([f"{LR}=fast"], f"{LR} = 'fast'; must be a number"),
    "contradictory keys": (
        ["optimizer=muon", f"{PARAMS}.muon_lr=0.1", f"{PARAMS}.muon_lr_ratio=2"],
        f"{PARAMS}.muon_lr = 0.1; must be null where muon_lr_ratio is given",
    ),
    "decay of an average that is no average": (
        [f"{PARAMS}.betas=[0.9,1]"],
        f"{PARAMS}.betas = [0.9, 1.0]; must be in [0, 1)",
    ),
    "key of a group that does not exist": (
        [f"{PARAMS}.groups=[{{match: embed, lr_scal: 2}}]"],
        (
            f"unknown key lr_scal in {PARAMS}.groups[0]; must be one of: kind, lr_scale, match, "
            "weight_decay; did you mean lr_scale?"
        ),
    ),
    "group without a regular expression": (
        [f'{PARAMS}.groups=[{{match: "emb(ed"}}]'],
        (
            f"{PARAMS}.groups[0].match = 'emb(ed'; must be a regular expression: missing ), "
            "unterminated subpattern at position 3"
        ),
    ),
    "item of a list that does not exist": (
        [f"{PARAMS}.groups=[{{match: embed}}]", f"{PARAMS}.groups.1.lr_scale=2"],
        (f"{PARAMS}.groups.1.lr_scale=2: {PARAMS}.groups is a list of 1; it has no item 1"),
    ),
    "key that an item of a list lacks": (
        [f"{PARAMS}.groups=[{{match: embed}}]", f"{PARAMS}.groups.0.lr_scale=2"],
        f"unknown key lr_scale in {PARAMS}.groups.0; must be one of: match",
    ),
    "width that no rule is known for": (
        ["optimizer=dap-ns-nadam", f"{PARAMS}.mup_base_n_embd=64"],
        f"{PARAMS}.mup_base_n_embd = 64; must be null: for dap-ns-nadam no rule is known",
    ),
    "Triton without a kernel": (
        ["optimizer=sgd", f"{PARAMS}.backend=triton"],
        f"{PARAMS}.backend = 'triton'; must be auto or torch: sgd has no Triton kernel",
    ),
    "Triton on a CPU": (
        [f"{PARAMS}.backend=triton", "device=cpu"],
        (
            f"{PARAMS}.backend = 'triton'; must be auto or torch where device is cpu: Triton needs "
            "a CUDA device"
        ),
    ),
    "no such way with what is not finite": (
        ["training.training_params.non_finite=ignore"],
        "training.training_params.non_finite = 'ignore'; must be one of diverge, skip",
    ),
    "nothing to keep a root above 0": (
        [f"{PARAMS}.eps=0"],
        f"{PARAMS}.eps = 0.0; must be a finite number above 0",
    ),
    "negative lr": ([f"{LR}=-1"], f"{LR} = -1.0; must be a finite number, at least 0"),
    "key below a value": (
        [f"{LR}.x=1"],
        f"{LR}.x=1: {LR} is a value, not a mapping; it has no key x",
    ),
    "batch that does not divide": (
        ["training.training_params.batch_size=7"],
        (
            "training.training_params.tokens_processed = 4096; must be a multiple of "
            "batch_size x context_length = 7 x 128 = 896"
        ),
    ),
    "context longer than the data": (
        [
            "training.training_params.context_length=2000000",
            "training.training_params.batch_size=1",
            "training.training_params.tokens_processed=2000000",
            "training.training_params.val_tokens_processed=2000000",
        ],
        (
            "training.training_params.context_length = 2000000; must be at most 118881: shakespeare has "
            "1188824 tokens, a tenth for validation"
        ),
    ),
    **{
        f"no item of a list: {sign or 'plain'}": (
            [f"{sign}optimizer.optimizer_params.betas.x=1"],
            (
                f"{sign}optimizer.optimizer_params.betas.x=1: optimizer.optimizer_params.betas is a "
                "list of 2; it has no item x"
            ),
        )
        for sign in ("", "+", "++")
    },
    "unreadable override": (
        ["foo=[1"],
        "override 'foo=[1' can't be read: no viable alternative at input '[1'",
    ),
    "sweep whose runs collide": (
        ["-m", f"{LR}=0.1,1e-1"],
        "sweep s: runs (lr=0.1) and (lr=0.1) are the same run; remove one",
    ),
    "one bad run among good ones": (
        ["-m", f"{LR}=0.1,-1"],
        f"run (lr=-1): {LR} = -1.0; must be a finite number, at least 0",
    ),
    "interval without a sampler": (
        ["-m", f"{LR}=interval(0,1)"],
        (
            f"{LR}=interval(0,1): an interval needs a sampler; list the values, or choose a sampling "
            "sweeper with hydra/sweeper=…"
        ),
    ),
    "setting of Hydra that a sweep does not heed": (
        ["-m", "seed=1,2", "hydra.sweep.dir=elsewhere"],
        "hydra.sweep.dir has no effect in a sweep; write paths.multirun=… and paths.sweep=…",
    ),
    "setting of hydra.launcher": (
        ["-m", "seed=1,2", "hydra.launcher.timeout_min=3"],
        "hydra.launcher.timeout_min has no effect here; write cluster.timeout_min=…",
    ),
    "unknown cluster key": (
        ["-m", "seed=1,2", "cluster.worker=3"],
        (
            "unknown key worker in cluster; must be one of: cpus_per_task, fail_fast, gpus_per_node, "
            "max_failures, max_requeues, mem_gb, nodes, requeue_on, runs_per_gpu, runs_per_node, "
            "stderr_to_stdout, tasks_per_node, timeout_min, workers; did you mean workers?"
        ),
    ),
    "wrong type of a cluster field": (
        ["-m", "seed=1,2", "cluster.workers=many"],
        "cluster.workers = 'many'; must be a whole number or null",
    ),
    "more GPUs than this machine has": (
        ["-m", "seed=1,2", "cluster.gpus_per_node=3"],
        "cluster.gpus_per_node = 3; must be null, 0 or 1 here",
    ),
    "no task of that name": (
        ["task=trainer.runn"],
        "task = trainer.runn; module trainer has no runn",
    ),
    "unwritable sweep directory": (
        ["-m", "seed=1,2", "paths.multirun=a_file/below"],
        "can't write a_file/below/s: {cwd}/a_file is not a writable directory",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_with_exit_code_2_and_nothing_written(case, shell):
    arguments, said = CASES[case]
    (shell.cwd / "a_file").write_text("")
    done = shell("launch", *arguments, "paths.sweep=s", code=2)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0] == "error: " + said.format(cwd=shell.cwd)
    assert os.listdir(shell.cwd) == ["a_file"]


def test_an_unknown_option_lists_the_options_and_the_nearest(shell):
    done = shell("launch", "optimizer=adamx", code=2)
    assert done.stderr.startswith(
        "error: unknown option adamx in optimizer; must be one of: adam, adamw,"
    )
    assert done.stderr.endswith("; did you mean adam?\n")


@pytest.mark.parametrize("option", ["x" * 5_000, "'a\nb'", "'a\x1b[31mb'", "'a\u2028b'"])
@pytest.mark.parametrize("words", [("{}",), ("-m", "seed=1,2", "{}")])
def test_whatever_an_option_is_called_the_error_is_one_short_printable_line(words, option, shell):
    done = shell("launch", *(word.format(f"optimizer={option}") for word in words), code=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.removesuffix("\n").isprintable()
    assert len(done.stderr) < 700


def test_an_unknown_sweep_lists_the_sweeps_and_the_nearest(shell):
    done = shell("launch", "sweep=quickstrat", code=2)
    assert done.stderr.startswith("error: unknown option quickstrat in sweep; must be one of: ")
    assert done.stderr.endswith("; did you mean quickstart?\n")
    done = shell("-m", "sweeps", "status", "quickstart", code=2)
    assert (
        done.stderr == "error: unknown sweep quickstart in multirun; must be one of: none exist\n"
    )


def test_without_sbatch_the_cluster_error_is_one_line_with_exit_code_3(shell, toy):
    shell.env["PATH"] = "/nowhere"
    done = shell("launch", "-m", *toy, "seed=1,2", "cluster=slurm", code=3)
    assert done.stderr == (
        "error: cluster=slurm needs sbatch, squeue, srun, scontrol, not on this machine's PATH; "
        "run on a login node, or use cluster=local; nothing was submitted\n"
    )
    assert os.listdir(shell.cwd) == []


NO_CUDA = "device = 'cuda'; must be auto or cpu: this machine has no CUDA device"


@pytest.mark.parametrize(
    ("words", "run"), [([], ""), (["-m", "seed=1,2"], "run (seed=1): "), (["dry_run=true"], "")]
)
def test_a_device_that_is_not_here_is_refused_before_anything_is_written(words, run, shell):
    shell.env["CUDA_VISIBLE_DEVICES"] = ""
    done = shell("launch", *words, "device=cuda", code=2)
    assert done.stderr == f"error: {run}{NO_CUDA}\n"
    assert os.listdir(shell.cwd) == []


def test_a_cluster_may_have_the_device_that_its_login_node_has_not(shell):
    shell.env |= {"CUDA_VISIBLE_DEVICES": "", "PATH": "/nowhere"}
    done = shell("launch", "-m", "seed=1,2", "device=cuda", "cluster=slurm", code=3)
    assert done.stderr.startswith("error: cluster=slurm needs sbatch")


def test_a_text_that_is_not_utf8_is_refused_before_anything_is_written(shell):
    (shell.cwd / "latin1.txt").write_text("Nur nicht ängstlich! " * 1000, "latin-1")
    done = shell("launch", "data=text", "data.dataset.path=latin1.txt", code=2)
    assert done.stderr == "error: data.dataset.path: latin1.txt is not UTF-8 at byte 10\n"
    assert os.listdir(shell.cwd) == ["latin1.txt"]


def test_without_sbatch_a_dry_run_shows_everything_and_says_what_it_does_not_know(shell, toy):
    shell.env["PATH"] = "/nowhere"
    words = ("launch", "-m", *toy, "seed=1,2", "paths.sweep=s", "cluster=slurm", "dry_run=true")
    done = shell(*words)
    assert done.stderr == (
        "warning: cluster=slurm needs sbatch, squeue, srun, scontrol, not on this machine's PATH; "
        "this goes by the runs' own records and by SLURM's default limits, not by those of a "
        "cluster\ndry run: nothing was submitted or written\n"
    )
    assert "#SBATCH --array=0-1%2" in done.stdout
    assert "2 runs to submit as 2 workers in 1 array" in done.stdout
    assert os.listdir(shell.cwd) == []


def test_a_dry_run_needs_no_squeue_either_where_slurm_once_took_a_job_of_the_sweep(shell, toy):
    sweep = ("launch", "-m", *toy, "seed=1", "paths.sweep=s")
    shell(*sweep)
    home = shell.cwd / "multirun" / "s" / ".sweep"
    [local] = [entry.submission for entry in ledger.entries(home)]
    submitted = replace(local, id="ab12", share=replace(local.share, backend=ledger.SLURM))
    submitted.write(home)
    ledger.record(home, ledger.TAKEN, submitted.id, job="77")
    shell.env["PATH"] = "/nowhere"
    done = shell(*sweep, "cluster=slurm", "dry_run=true")
    assert "this goes by the runs' own records" in done.stderr
    assert "0 runs to submit" in done.stdout


def test_rerun_of_what_is_no_run_is_one_line_with_exit_code_2(shell):
    (shell.cwd / "empty").mkdir()
    done = shell("-m", "sweeps", "rerun", "empty", code=2)
    assert done.stderr == "error: empty has no .hydra/overrides.yaml; it is not a run directory\n"
    done = shell("-m", "sweeps", "rerun", "nowhere", code=2)
    assert done.stderr == "error: nowhere is not a directory\n"


def test_a_second_launch_of_a_sweep_being_launched_says_who_holds_it(shell, toy):
    from sweeps.records import ledger

    with ledger.locked(shell.cwd / "multirun" / "s" / ".sweep", "s"):
        done = shell("launch", "-m", *toy, "paths.sweep=s", "seed=1,2", code=2)
    assert done.stderr == (
        f"error: sweep s is being launched already, by process {os.getpid()} on {os.uname().nodename}\n"
    )


def test_an_unwritable_output_directory_is_one_line_with_exit_code_2(shell, toy):
    (shell.cwd / "a_file").write_text("")
    done = shell("launch", *toy, "paths.outputs=a_file", code=2)
    assert done.stderr.splitlines()[-1].startswith(
        "error: can't write a_file/gpt-tiny/shakespeare/"
    )
    assert done.stderr.endswith(": Not a directory\n")


def test_with_a_config_dir_of_the_users_own_the_misspelt_key_is_found(shell, toy):
    (shell.cwd / "mine" / "optimizer").mkdir(parents=True)
    (shell.cwd / "mine" / "optimizer" / "my.yaml").write_text(
        "optimizer_params: {name: my, lr: 1}\n"
    )
    done = shell(
        "launch",
        "--config-dir",
        "mine",
        *toy,
        "optimizer=my",
        "optimizer.optimizer_params.lrr=1",
        code=2,
    )
    assert done.stderr == (
        "error: unknown key lrr in optimizer.optimizer_params; must be one of: lr, name; did you mean lr?\n"
    )
