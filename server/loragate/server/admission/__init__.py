"""Who may go on: budgets, the queue of requests, LoRA slots, deadlines."""
