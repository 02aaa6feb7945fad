"""The training itself: the Trainers of both tasks, evaluation, saving, the Hub, stopping and resuming."""
