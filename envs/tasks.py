"""Which of its tasks an environment is."""


def check_task(name: str, task: int, count: int) -> int:
    """`task` as an int, if the environment `name` has it, which has `count` tasks.

    Raises:
        ValueError: it has no such task.
    """
    if task not in range(count):
        raise ValueError(f"task of {name} must be an integer from 0 to {count - 1}, got {task!r}")
    return int(task)
