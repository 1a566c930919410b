"""What a step needs, asked of the compiler."""
