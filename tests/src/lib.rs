//! Harness for end-to-end tests: real processes, ports from the OS, TCP proxies and load actors.
