"""Makes a loop durable: admission, execution, recovery. Above it `api`, below it `agent`."""
