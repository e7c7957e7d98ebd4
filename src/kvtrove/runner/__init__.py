"""SchedulerOutput in, ModelOutput out."""
