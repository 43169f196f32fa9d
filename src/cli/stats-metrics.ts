/** The counts of a mount as OpenMetrics 1.0 text, which Prometheus reads. */
import type { Counted, StatsFile } from './stats-rates.js'

interface Sample {
  readonly labels?: Readonly<Record<string, string>>
  readonly value: number
}

/** Returns the text, with its end mark. Latencies are gauges: the kernel's requests are sampled, so their sums are unknown. */
export function openMetrics(now: Counted, mountpoint: string): string {
  const stats = now.stats as StatsFile
  const family = (
    name: string,
    type: 'counter' | 'gauge',
    help: string,
    samples: readonly Sample[],
    unit?: string,
  ) => {
    const full = `vimgfs_${name}`
    return [
      `# TYPE ${full} ${type}`,
      ...(unit === undefined ? [] : [`# UNIT ${full} ${unit}`]),
      `# HELP ${full} ${help}`,
      ...samples.map(({ labels = {}, value }) => {
        const pairs = Object.entries({ mountpoint, ...labels })
        const text = pairs.map(([key, label]) => `${key}="${escaped(label)}"`).join(',')
        return `${full}${type === 'counter' ? '_total' : ''}{${text}} ${value}`
      }),
    ]
  }
  const one = (value: number): Sample[] => [{ value }]
  const { caches, latency, memory } = stats
  const cacheSamples = (field: 'hits' | 'misses') =>
    (['metadata', 'clusters'] as const).map(cache => ({
      labels: { cache },
      value: caches[cache][field],
    }))
  const seen = (['read', 'write', 'other'] as const).filter(name => latency[name].samples > 0)
  const times = seen.flatMap(request =>
    (['p50', 'p90', 'p99', 'max'] as const).map(quantile => ({
      labels: { request, quantile },
      value: latency[request][quantile] / 1e6,
    })),
  )
  const requests = Object.entries(stats.requests).map(([opcode, value]) => ({
    labels: { opcode },
    value,
  }))
  return [
    ...family('requests', 'counter', 'Requests of the kernel.', requests),
    ...family('errors', 'counter', 'Requests that were answered with an error.', one(stats.errors)),
    ...family('read_bytes', 'counter', 'Bytes read.', one(stats.bytesRead), 'bytes'),
    ...family('written_bytes', 'counter', 'Bytes written.', one(stats.bytesWritten), 'bytes'),
    ...family('flushes', 'counter', 'Flushes of the disk.', one(stats.flushes)),
    ...family('cache_hits', 'counter', 'Lookups that memory answered.', cacheSamples('hits')),
    ...family('cache_misses', 'counter', 'Lookups that read the image.', cacheSamples('misses')),
    ...family('request_seconds', 'gauge', 'How long requests took.', times, 'seconds'),
    ...family('threads', 'gauge', 'Threads that serve.', one(stats.threads)),
    ...family('memory_bytes', 'gauge', 'Resident memory.', one(memory.rssBytes), 'bytes'),
    ...family(
      'uptime_seconds',
      'gauge',
      'Time since mounting.',
      one(stats.uptimeSeconds),
      'seconds',
    ),
    '# EOF\n',
  ].join('\n')
}

const escaped = (text: string): string =>
  text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
