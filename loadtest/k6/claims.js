// Many devices claim from the same pools until all are empty. Each key must go to one claim, and no pool may be reported
// exhausted before it is.

import { allWell, gather, once } from './lib/crowd.js';
import { claimEverything, claimsCount } from './lib/claiming.js';

export const options = {
  scenarios: { claims: once() },
  thresholds: { ...allWell(), ...claimsCount, claim_ms: ['p(95)<1500'] },
};

export default () => gather(claimEverything);
