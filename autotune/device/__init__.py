"""What machine this is: GPU, driver, host, neighbours, price."""
