"""From a run's folder to a time and cost report."""
