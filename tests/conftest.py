"""Settings of the whole suite."""

from hypothesis import settings

# No deadline: the suite runs on machines that are busy with other work. Derandomised: a run can be repeated.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
