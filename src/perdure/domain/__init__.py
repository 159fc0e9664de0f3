"""What exists: ids, messages, events, records, the error tree and the ports. No I/O; imports nothing of ours."""
