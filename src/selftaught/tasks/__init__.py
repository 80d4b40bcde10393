"""Worlds with exact answers, and loaders of real sets."""

from selftaught.tasks.registry import load_task, task_names
from selftaught.tasks.task import Task, TaskSpec

__all__ = ["Task", "TaskSpec", "load_task", "task_names"]
