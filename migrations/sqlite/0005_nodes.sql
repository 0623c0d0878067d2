-- The running nodes of this deployment. The row with the nil id is not a node: it holds the random id of the deployment.
CREATE TABLE nodes (
    id         BLOB      NOT NULL PRIMARY KEY,
    heartbeat  TIMESTAMP NOT NULL,
    deployment BLOB
);
INSERT INTO nodes (id, heartbeat, deployment)
VALUES (zeroblob(16), '1970-01-01T00:00:00+00:00', randomblob(16));
