/** http:// and https:// as a kind of source. Only reading. */
import { ImageError } from '../../errors.js'
import { WriteProtected } from '../../io/write-protected.js'
import { shownAddress } from '../address.js'
import { type CachedSource, CachedStore, fetchRange } from '../cached-store.js'
import { Counters } from '../network/counters.js'
import { endNetwork, onNetworkLine, theNetwork } from '../network/network.js'
import type { SourceKind } from '../kind.js'

export const HTTP: SourceKind = {
  name: 'cached',
  schemes: ['http', 'https'],

  open(address, access) {
    const path = shownAddress(address)
    if (!URL.canParse(address)) {
      throw new ImageError('REFUSED', 'this is no address', {
        path,
        hint: 'write https://HOST/PATH',
      })
    }
    const url = new URL(address)
    if (url.password !== '') {
      const what = 'its address has a password in it, which the list of processes shows'
      throw new ImageError('REFUSED', what, {
        path,
        hint: 'put it into .netrc in your home folder',
      })
    }
    if (access === 'write') {
      throw new WriteProtected(
        path,
        'it lies on a server that is only read',
        'say -o ro or -o scratch',
      )
    }
    return { path, ...theNetwork().open(url.href) }
  },

  fetch: ({ path, source }, at, length) => fetchRange(path, source as CachedSource, at, length),

  stats: source => new Counters((source as CachedSource).counters).read(),

  onLine: onNetworkLine,

  endWaiting: endNetwork,

  store: ({ path, source }) => new CachedStore(path, source as CachedSource),

  close: source => theNetwork().close(source as CachedSource),
}
