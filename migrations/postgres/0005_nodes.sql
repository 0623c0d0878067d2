-- The running nodes of this deployment. The row with the nil id is not a node: it holds the random id of the deployment.
CREATE TABLE nodes (
    id         UUID        NOT NULL PRIMARY KEY,
    heartbeat  TIMESTAMPTZ NOT NULL,
    deployment UUID
);
INSERT INTO nodes (id, heartbeat, deployment)
VALUES ('00000000-0000-0000-0000-000000000000', NOW(), uuid_generate_v4());
