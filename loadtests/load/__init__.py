"""Parts of the load tests: an open-loop driver that knows which expert should answer. HTTP only, as `bench`."""
