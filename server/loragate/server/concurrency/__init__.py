"""Work that goes on beside requests: supervised tasks, retries, pools of threads, processes."""
