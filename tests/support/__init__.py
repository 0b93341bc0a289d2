"""What tests share: invented rows and tasks, tiny models, references; no tests."""
