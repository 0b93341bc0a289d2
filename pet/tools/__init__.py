"""What is done before a run (authoring) and with a published one (inference, reports, export)."""
