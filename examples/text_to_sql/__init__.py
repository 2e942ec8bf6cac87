"""Text to SQL on defog's questions: reasoning steps, then a query, graded by executing it in a sandbox."""
