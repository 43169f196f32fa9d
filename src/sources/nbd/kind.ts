/** Exports of NBD servers: qemu-nbd, nbdkit, nbd-server, and what these stand in front of. */
import { ImageError } from '../../errors.js'
import type { SourceSpec } from '../../io/file-spec.js'
import type { Access, OpenedFile } from '../../io/opened-file.js'
import { placeholder } from '../../io/placeholder.js'
import { parseAddress } from './address.js'
import { type NbdSpec, openPool, Pool } from './pool.js'
import { ExportRefused, FLAG } from './protocol.js'
import { ConnectionLost } from './socket.js'
import { NbdStore, WritableNbdStore } from './store.js'
import type { SourceKind } from '../kind.js'
import { currentSettings } from '../settings.js'
import { WriteProtected } from '../../io/write-protected.js'

/** The exports that this thread has opened. */
const inUse = new Set<NbdSpec>()

export const NBD: SourceKind = {
  name: 'nbd',
  schemes: ['nbd', 'nbd+unix'],

  open(address: string, access: Access): OpenedFile {
    const { endpoint, exportName, shown } = parseAddress(address)
    const isWritten = access === 'write'
    let spec: NbdSpec
    try {
      spec = openPool(endpoint, exportName, isWritten, currentSettings().timeoutMs)
    } catch (error) {
      if (!(error instanceof ConnectionLost) && !(error instanceof ExportRefused)) throw error
      const isLost = error instanceof ConnectionLost
      const what = isLost ? `its server cannot be used: ${error.message}` : error.message
      throw new ImageError('MISSING', what, {
        path: shown,
        hint: 'look at the server, and at the address',
      })
    }
    try {
      if (isWritten) requireWritable(spec, shown)
      const opened = { path: shown, ...placeholder(spec.info.sizeBytes), source: spec }
      inUse.add(spec)
      return opened
    } catch (error) {
      new Pool(spec, shown).close()
      throw error
    }
  },

  store: ({ path, source }) => new NbdStore(path, source as NbdSpec),
  writable: ({ path, source }) => new WritableNbdStore(path, source as NbdSpec),
  /** Writes still have to be flushed, which takes the timeout at most. */
  endWaiting() {
    for (const spec of inUse) if (!spec.isWritten) new Pool(spec, '').abandon()
  },
  close(source: SourceSpec) {
    inUse.delete(source as NbdSpec)
    new Pool(source as NbdSpec, '').close()
  },
}

function requireWritable({ info: { flags } }: NbdSpec, path: string): void {
  const hint = 'only read it (mount -o ro, or -o scratch)'
  if ((flags & FLAG.readOnly) !== 0) {
    throw new WriteProtected(path, 'its server gives it only for reading', hint)
  }
  if ((flags & FLAG.flush) === 0) {
    throw new WriteProtected(path, 'its server cannot make durable what is written (flush)', hint)
  }
}
