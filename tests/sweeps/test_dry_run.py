def test_shows_every_run_its_directory_and_the_workers_and_writes_nothing(shell, toy):
    done = shell("launch", "-m", *toy, "paths.sweep=s", "dry_run=true", "seed=1,2,3")
    for seed in (1, 2, 3):
        assert f"multirun/s/gpt-tiny/shakespeare/adamw/seed-{seed}-" in done.stdout
    assert "sweeps.worker" in done.stdout
    assert "3 runs to submit as" in done.stdout
    assert "nothing was submitted or written" in done.stderr
    assert list(shell.cwd.iterdir()) == []


def test_tells_new_runs_from_complete_ones(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=1,2")
    done = shell("launch", "-m", *toy, "paths.sweep=s", "dry_run=true", "seed=1,2,3")
    assert [line.split()[2] for line in done.stdout.splitlines()[1:4]] == [
        "completed",
        "completed",
        "new",
    ]
    assert "1 run to submit as 1 worker" in done.stdout
