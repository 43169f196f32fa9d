/** Does what commands ask of a mounted image over its socket. */
import type { Handler } from '../control/listener.js'
import { NoRequest } from '../control/protocol.js'

export const liveRequests = (): Handler => async request => {
  if (request.do === 'status') return {}
  throw new NoRequest(`this server does not know the request ${request.do}`)
}
