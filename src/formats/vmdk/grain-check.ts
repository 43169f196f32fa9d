/**
 * Checks the tables of a hosted sparse or a COWD extent: everything must lie in the file, and nothing may overlap (VMware,
 * Virtual Disk Format 5.0, "Hosted Sparse Extents", "ESX Server Sparse Extents").
 */
import type { Store } from '../../io/store.js'
import { Inspection } from './check/inspection.js'
import type { GrainSink, InspectOptions } from './check/grain-sink.js'
import type { GrainLayout } from './layout.js'

/**
 * Inspects the header, the descriptor's place, the directories, the tables and the entries of an extent. Throws SystemError;
 * ImageError if the file becomes shorter meanwhile; and what the sink throws.
 */
export function inspectGrains(
  store: Store,
  layout: GrainLayout,
  sink: GrainSink,
  options: InspectOptions = {},
): void {
  if (layout.capacityBytes > 0) new Inspection(store, layout, sink, options).run()
}
