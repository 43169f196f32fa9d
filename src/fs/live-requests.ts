/** Does what commands ask of a mounted image over its socket. */
import type { Handler } from '../control/listener.js'
import { NoRequest } from '../control/protocol.js'
import { sentList } from '../control/received-list.js'
import { snapshotListOf } from '../image/snapshot-list.js'
import type { ServedImage } from './served-image.js'

export const liveRequests =
  (image: ServedImage): Handler =>
  async request => {
    const { layers, snapshots } = image.chain
    switch (request.do) {
      case 'status':
        return {}
      case 'list':
        return sentList(snapshotListOf(image.chain, layers[0].path, snapshots, request.layers))
      default:
        throw new NoRequest(`this server does not know the request ${request.do}`)
    }
  }
