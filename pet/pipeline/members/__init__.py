"""What the members of an ensemble share while they are trained and scored. The stage itself is `stages/finetune`."""
