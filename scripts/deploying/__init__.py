"""The parts of scripts/deploy_runpod."""
