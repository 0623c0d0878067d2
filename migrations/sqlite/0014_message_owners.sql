-- Only PostgreSQL checks a foreign key with a query for each row: see its migration of this number.
SELECT 1;
