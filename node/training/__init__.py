"""The trainer's side: what runs in the trainer process or in a user's own script, and the only place that meets torch."""
