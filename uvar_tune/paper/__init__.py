"""What exists because the paper has it: its tables, its published figures, the cost of a step."""
