"""Programs: what runs in the measured processes. They may import what `.peers/venv` has, and little of ours."""
