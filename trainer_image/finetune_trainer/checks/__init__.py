"""What is wrong, doubtful or dangerous in rows that can be read: `suite.Suite` sees each row once and says what it found."""
