"""`python -m pet`, which `accelerate launch -m pet` needs."""

from pet.cli import main

main(prog_name="pet")
