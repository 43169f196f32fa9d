/** The thread that does all that needs the network: it opens objects, and fetches the blocks that others ask for. */
import { workerData } from 'node:worker_threads'
import { ImageError, isExpected, oneLine } from '../../errors.js'
import { currentThread } from '../../io/threads.js'
import { shownAddress } from '../address.js'
import { type CachedSource, ObjectState } from '../cached-store.js'
import { blockBytesOf, CacheFolder, type OpenedObject } from '../cache/folder.js'
import { CacheSpace } from '../cache/space.js'
import { openHttp } from '../http/http-source.js'
import { type Asked, Mail } from '../mail.js'
import type { Settings } from '../settings.js'
import { Counters } from './counters.js'
import { RemoteObject } from './object.js'
import type { NetworkAnswer, NetworkRequest, ThreadSetup } from './protocol.js'
import type { RangeSource } from './range-source.js'
import { Tiers } from './tiers.js'

/** The thread also looks for requests without being called, so often. */
const LOOK_MS = 1000

const setup = workerData as ThreadSetup
const { port, lines } = setup
const mail = new Mail(setup.mail)
const counters = new Counters(setup.counters)
const objects = new Map<number, RemoteObject>()
const caches = new Map<string, Cache>()

interface Cache {
  readonly folder: CacheFolder
  readonly space: CacheSpace
}

mail.serveAs(currentThread())
port.on('message', (request: NetworkRequest) => {
  if (request.do === 'open') void open(request)
  else {
    objects.get(request.id)?.close()
    objects.delete(request.id)
  }
})
void serve()

async function serve(): Promise<void> {
  const seen = new Map<number, Asked>()
  for (;;) {
    const bell = mail.bell
    for (const asked of mail.asked(seen)) {
      seen.set(asked.slot, asked)
      const object = objects.get(asked.object)
      if (object) object.ask(asked)
      else mail.answer(asked, 'it is closed')
    }
    for (const object of objects.values()) object.lookAtMarks()
    await mail.heard(bell, LOOK_MS)
  }
}

type OpenRequest = NetworkRequest & { do: 'open' }

async function open(request: OpenRequest): Promise<void> {
  const { id, done } = request
  let answer: NetworkAnswer
  try {
    answer = request.settings.isOffline ? openOffline(request) : await openOnline(request)
  } catch (error) {
    const isKnown = error instanceof ImageError
    const hint = isKnown ? error.context.hint : undefined
    const where = isKnown && error.context.path !== undefined ? `${error.context.path}: ` : ''
    const problem = isKnown
      ? `${where}${error.message}`
      : isExpected(error)
        ? oneLine(error)
        : String((error as Error).stack)
    answer = { id, problem, hint, isMissing: isKnown && error.code === 'MISSING' }
  }
  port.postMessage(answer)
  Atomics.store(new Int32Array(done), 0, 1)
  Atomics.notify(new Int32Array(done), 0)
}

function cacheOf({ cacheFolder, cacheBytes }: Settings): Cache | undefined {
  if (cacheFolder === undefined) return undefined
  const known = caches.get(cacheFolder)
  if (known) return known
  const folder = CacheFolder.open(cacheFolder)
  const cache = { folder, space: new CacheSpace(folder, cacheBytes) }
  caches.set(cacheFolder, cache)
  return cache
}

async function openOnline(request: OpenRequest): Promise<NetworkAnswer> {
  const { address, settings } = request
  const { timeoutMs, certificates, isPrefetching } = settings
  const cache = cacheOf(settings)
  // The first byte says all that has to be known of an object that was here before.
  const headBytes = cache?.folder.knows(address) ? 1 : blockBytesOf(0)
  const source = await openHttp(address, { timeoutMs, certificates, headBytes })
  counters.add('requests')
  counters.add('fetchedBytes', source.head.length)
  try {
    const { sizeBytes, validator, modifiedSeconds } = source
    const blockBytes = blockBytesOf(sizeBytes)
    const about = { address, validator: validator ?? '', sizeBytes, blockBytes, modifiedSeconds }
    // Without a validator nobody knows later whether the blocks are still those of the object.
    const kept = validator === undefined ? undefined : cache?.folder.openObject(address, about)
    const opened = add(request, source, kept, cache?.space, sizeBytes, modifiedSeconds)
    if (isPrefetching) void opened.object.prefetch()
    return opened.answer
  } catch (error) {
    source.close()
    throw error
  }
}

function openOffline(request: OpenRequest): NetworkAnswer {
  const { address, settings } = request
  const { cacheFolder } = settings
  const folder = cacheFolder === undefined ? undefined : CacheFolder.find(cacheFolder)
  const kept = folder?.openLast(address)
  if (!kept) {
    throw new ImageError('MISSING', 'the cache has nothing of it', { hint: 'leave out --offline' })
  }
  const { sizeBytes, modifiedSeconds } = kept.about
  return add(request, undefined, kept, undefined, sizeBytes, modifiedSeconds).answer
}

function add(
  { id, address, settings }: OpenRequest,
  source: RangeSource | undefined,
  kept: OpenedObject | undefined,
  space: CacheSpace | undefined,
  sizeBytes: number,
  modifiedSeconds: number | undefined,
) {
  const { timeoutMs } = settings
  const blockBytes = blockBytesOf(sizeBytes)
  const tiers = new Tiers(kept?.files, space, blockBytes, sizeBytes)
  const state = ObjectState.memory()
  const common = { blockBytes, sizeBytes, state }
  const object = new RemoteObject({
    ...{ id, source, tiers, mail, counters, timeoutMs, ...common },
    log: message => lines.postMessage({ path: shownAddress(address), message }),
  })
  if (source) object.keep(source.head)
  objects.set(id, object)
  const spec: CachedSource = {
    ...{ kind: 'cached', object: id, mail: setup.mail, counters: setup.counters },
    ...{ ...common, tiers: tiers.files },
  }
  return { object, answer: { id, source: spec, modifiedSeconds } }
}
